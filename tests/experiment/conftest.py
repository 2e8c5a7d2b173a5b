"""A finished experiment that several files read."""

import pytest

from experiment_kit import FILE, study, train
from moslora.experiment import one_run


@pytest.fixture(scope="session")
def finished(world, tmp_path_factory):
    """Folder of a finished experiment beside its file, e.yaml. Copy it before changing it."""
    here = tmp_path_factory.mktemp("finished")
    (here / "e.yaml").write_text(FILE.format(world=world, rates="[3e-2]", search=""), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_run, "train_in_processes", train)
        study(str(here / "e.yaml"), here / "e").run()
    return here / "e"
