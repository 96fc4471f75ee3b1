#!/usr/bin/env bash
# pandas 3.1.1 with pyarrow 26.0.1: importing pandas starts a thread, where pyarrow is installed.
#
# pandas imports pyarrow, whose jemalloc starts a background thread when its library is loaded, whichever
# memory pool pyarrow then uses. A program that forks after its imports, because it has no threads yet,
# has one. The variable JE_ARROW_MALLOC_CONF turns it off; ARROW_DEFAULT_MEMORY_POOL does not.
# Seen on Linux:
#   nothing set: jemalloc_bg_thd
#   ARROW_DEFAULT_MEMORY_POOL=system: jemalloc_bg_thd
#   JE_ARROW_MALLOC_CONF=background_thread:false: none
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check pandas==3.1.1 pyarrow==26.0.1
program='
import os, pandas
names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
print(", ".join(name for name in names if "jemalloc" in name) or "none")'
seen=$(
    export OPENBLAS_NUM_THREADS=1
    echo "nothing set: $("$folder/env/bin/python" -c "$program")"
    for setting in ARROW_DEFAULT_MEMORY_POOL=system JE_ARROW_MALLOC_CONF=background_thread:false; do
        echo "$setting: $(env "$setting" "$folder/env/bin/python" -c "$program")"
    done
)
echo "$seen"
[ "$seen" = "nothing set: jemalloc_bg_thd
ARROW_DEFAULT_MEMORY_POOL=system: jemalloc_bg_thd
JE_ARROW_MALLOC_CONF=background_thread:false: none" ]
