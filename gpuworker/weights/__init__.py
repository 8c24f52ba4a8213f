"""From a model's name or path to its configuration, tensors and tokenizer."""
