import pytest
import torch
import toy_world


@pytest.fixture(scope="session")
def world():
    """A world model that has learned the toy world by heart."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield toy_world.trained_world()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def world_folder(world, tmp_path_factory):
    """Its exported folder."""
    return str(world.save_pretrained(tmp_path_factory.mktemp("worlds") / "toy"))
