"""Install the course from this folder, without a network: ``python install.py``, then the command that it prints."""

import os
import subprocess
import sys
import venv
from pathlib import Path

here = Path(__file__).resolve().parent
environment = here / ".venv"
tools = environment / ("Scripts" if os.name == "nt" else "bin")
venv.create(environment, with_pip=True)
pip = [str(tools / "python"), "-m", "pip", "install", "--quiet", "--no-index", "--find-links", str(here / "wheels")]
failed = subprocess.run([*pip, "-r", str(here / "requirements.txt"), "dssm-helpers"]).returncode
if failed:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    sys.exit(f"The wheels do not fit Python {version} on this system: make a kit on one like it.")
print(f"Ready. Start with:\n  {tools / 'jupyter'} lab {here / 'notebooks'}")
