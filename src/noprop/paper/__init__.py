"""The paper's tables and figures, each from one command: ``noprop reproduce``.

``paper`` holds its numbers, ``cells`` what is trained for each table and figure, ``scale`` how much
of it; ``queue`` trains cells beside each other, ``measure`` says what is kept of each, ``records``
keeps it; ``tables`` and ``figures`` show ours beside the paper's.
"""
