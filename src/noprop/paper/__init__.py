"""The paper's tables and figures, each from one command: ``noprop reproduce``.

``numbers`` holds the paper's numbers, ``cells`` the recipes of each table and figure, and ``scale``
a fraction of them. ``queue`` trains several cells at a time, ``measure`` measures each of them, and
``records`` stores the results. ``tables`` and ``figures`` compare them with the paper's.
"""
