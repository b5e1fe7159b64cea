"""What the fork server imports, once for all the processes that it starts.

Nothing else imports this module. A fork copies one thread alone, so no library may start another.
"""

import os
import sys

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's would start threads; children get another value
if sys.path and not sys.path[0]:  # the current folder, where a user's own files have any names
    del sys.path[0]

import noprop.evaluate
import noprop.run.local  # noqa: F401
