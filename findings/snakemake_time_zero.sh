#!/usr/bin/env bash
# Snakemake 9.27.1: an output whose modification time is 0 is never out of date.
#
# An output that is older than its input is made again; with a time of 1 s it is. With a time of 0
# (1 January 1970), as archives without times and some copies leave it, nothing is to be done, and
# the exit status is 0.
#
# Seen:
#   time 0: Nothing to be done
#   time 1: made again
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check snakemake==9.27.1
cd "$folder"
printf 'rule all:\n    input: "in.txt"\n    output: "out.txt"\n    shell: "cp {input} {output}"\n' > Snakefile
seen=$(
    for time in 0 1; do
        echo old > out.txt
        echo new > in.txt
        python3 -c "import os; os.utime('out.txt', ($time, $time))"
        said=$(env/bin/snakemake --cores 1 2>&1)
        if [ "$(cat out.txt)" = new ]; then
            echo "time $time: made again"
        else
            echo "time $time: $(grep -o 'Nothing to be done' <<< "$said")"
        fi
    done
)
echo "$seen"
[ "$seen" = "time 0: Nothing to be done
time 1: made again" ]
