"""bczoo: a PyTorch Lightning model zoo for behaviour cloning of video games."""

__version__ = "0.1.0"
