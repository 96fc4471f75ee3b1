#!/usr/bin/env bash
# open_clip 3.3.0: `strip_sep_token` empties the last place of a long text, which CLIPA's models pool.
#
# HFTokenizer cuts a text to `context_length` tokens, [SEP] included, and then replaces [SEP] by 0. Of
# a text that fills all places, the last one is then padding. CLIPA's own training has no [SEP]: it
# keeps one piece more, and its text tower reads the last place. With 32 places, evaluation sees 30
# pieces and training 31.
#
# Seen: 8 places of a text of 20 words "cat" (id 4; 2 is [CLS], 3 is [SEP]):
#   [2, 4, 4, 4, 4, 4, 4, 0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    open-clip-torch==3.3.0 transformers==5.23.0 tokenizers==0.23.3
mkdir "$folder/bert"
printf '[PAD]\n[UNK]\n[CLS]\n[SEP]\ncat\n' > "$folder/bert/vocab.txt"
echo '{"model_type": "bert"}' > "$folder/bert/config.json"
echo '{"do_lower_case": true}' > "$folder/bert/tokenizer_config.json"
seen=$(cd "$folder" && env/bin/python - 2>/dev/null <<'PYTHON'
from open_clip.tokenizer import HFTokenizer

encode = HFTokenizer("bert", context_length=8, strip_sep_token=True)
print(encode(["cat " * 20])[0].tolist())
PYTHON
)
echo "$seen"
[ "$seen" = "[2, 4, 4, 4, 4, 4, 4, 0]" ]
