#!/usr/bin/env bash
# submitit 1.5.4: an sbatch option that is False or None is written with a value, not left out.
#
# `slurm_additional_parameters` takes options by name. True becomes a bare flag (`--requeue`). False
# and None become `--requeue=False` and `--requeue=None`, which sbatch refuses: "option doesn't allow
# an argument". An option can so be added by a mapping, and not be taken away by one.
#
# Seen:
#   #SBATCH --exclusive
#   #SBATCH --overcommit=None
#   #SBATCH --requeue=False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check submitit==1.5.4
seen=$(cd "$folder" && env/bin/python - <<'PYTHON'
from submitit.slurm.slurm import _make_sbatch_string

options = {"requeue": False, "exclusive": True, "overcommit": None}
script = _make_sbatch_string("true", "jobs", additional_parameters=options)
print(*sorted(line for line in script.splitlines() if any(name in line for name in options)), sep="\n")
PYTHON
)
echo "$seen"
[ "$seen" = "#SBATCH --exclusive
#SBATCH --overcommit=None
#SBATCH --requeue=False" ]
