"""``python -m noprop``."""

from noprop.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
