"""The types that transformers 5.8 and tokenizers demand of the JSON files beside the weights."""
