"""detrkit: compose, train and compare DETR object detectors from TOML recipes."""
