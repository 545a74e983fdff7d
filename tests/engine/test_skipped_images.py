"""Images that cannot be read, in whose place a training takes others."""

from dataclasses import replace

from tests.engine.toys import toy_trainer


def test_images_that_cannot_be_read_are_named_once_and_counted_at_the_end(tmp_path):
    said = []
    trainer = toy_trainer(tmp_path / "run", epochs=2)
    trainer.reporter.say = lambda line, **_: said.append(line)
    loader = trainer.source.loader

    def with_one_bad(**options):
        return [replace(batch, skipped=("b.jpg: is broken",)) for batch in loader(**options)]

    trainer.source.loader = with_one_bad
    trainer.fit()
    told = [line for line in said if "b.jpg" in line]
    assert told == [
        "warning: b.jpg: is broken; another image stands in its place",
        "warning: 1 image could not be read, and others stood in their place: b.jpg: is broken",
    ]
