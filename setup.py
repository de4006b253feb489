"""Nothing is installed, the scripts run from this folder: `pip install .` ends here."""

import sys

sys.exit(
    "this project is no package to install; its scripts run from its folder (see README.md): "
    "pip install -r requirements.txt"
)
