"""What all tests need before torch is imported: waiting threads that sleep, as under the command line."""

from bczoo.threads import tune_for_cpu

tune_for_cpu()
