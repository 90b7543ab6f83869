"""What all tests need before torch is imported: waiting threads that sleep, as under the command line."""

import os

from bczoo.threads import tune_for_cpu

tune_for_cpu()
if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core, so one thread per process
    os.environ.setdefault("OMP_NUM_THREADS", "1")
