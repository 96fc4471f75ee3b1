#!/usr/bin/env bash
# Snakemake 9.27.1: numbers inside lists and mappings of `--config` arrive as text, and so does `false`.
#
# `--config depth=3` is a number, and so is one in a configuration file. The same number in a list or a
# mapping on the command line is a string. A lower-case `false` is the text 'false' everywhere, which
# is true where a program tests it; `False` is a truth value, but not in a list. And a key of a single
# letter is refused: "Config entry must start with a valid identifier".
#
# Seen:
#   {'depth': 3}
#   {'seeds': ['0', '1']}
#   {'recipe': {'lr': '4e-3', 'flip': 'false'}}
#   {'flip': 'false'}
#   {'flip': False}
#   n=3: rc 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check snakemake==9.27.1
printf 'print(dict(config))\nrule all:\n    shell: "true"\n' > "$folder/Snakefile"
cd "$folder"
ask() { env/bin/snakemake --cores 1 --dry-run --quiet all --config "$1" 2>error > said || return 1; sed -n 1p said; }
seen=$(
    for words in depth=3 'seeds=[0,1]' 'recipe={lr: 4e-3, flip: false}' flip=false flip=False; do
        ask "$words"
    done
    ask n=3 || echo "n=3: rc $?"
)
echo "$seen"
[ "$seen" = "{'depth': 3}
{'seeds': ['0', '1']}
{'recipe': {'lr': '4e-3', 'flip': 'false'}}
{'flip': 'false'}
{'flip': False}
n=3: rc 1" ]
