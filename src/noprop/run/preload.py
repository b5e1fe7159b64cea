"""What the fork server imports, once for all the processes that it starts.

Nothing else imports this module. A fork copies one thread alone, so no library may start another.
Imports make no garbage: without searches for it they take a sixth less time. Frozen, the modules
are not searched in the processes either, so their pages stay shared.
"""

import gc
import os
import sys

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's would start threads; children get another value
gc.disable()
if sys.path and not sys.path[0]:  # the current folder, where a user's own files have any names
    del sys.path[0]

import noprop.evaluate  # noqa: E402
import noprop.run.local  # noqa: E402, F401

gc.freeze()
gc.enable()
