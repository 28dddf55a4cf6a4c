"""Compare the recipe's way through the layers with the model's own.

PYTHON sharing_program.py RECIPE BASE ROWS SAMPLES
"""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer, Gemma4ForConditionalGeneration

recipe, base, rows, samples = sys.argv[1:]
sys.path.insert(0, recipe)
from layers import check_sharing  # noqa: E402 - it lies in the recipe's folder

model = Gemma4ForConditionalGeneration.from_pretrained(base, dtype="auto").eval()
tokenizer = AutoTokenizer.from_pretrained(base)
equal = 0
for line in Path(rows).read_text().splitlines()[: int(samples)]:
    text = tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False)
    check_sharing(model, tokenizer(text, truncation=True, max_length=256, add_special_tokens=False)["input_ids"])
    equal += 1
print(equal, "of", samples)
