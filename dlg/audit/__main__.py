"""``python -m dlg.audit``."""

import sys

from dlg.audit.cell import main

if __name__ == "__main__":
    sys.exit(main())
