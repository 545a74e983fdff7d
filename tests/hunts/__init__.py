"""Hunts for what breaks detrkit: kills, damaged files, full disks, mutated recipes, hostile names, strangers' code.

`python -m tests.hunts` runs all of them and counts; the suite tries a share.
"""
