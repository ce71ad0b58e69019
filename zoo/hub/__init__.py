"""Models on the Hugging Face Hub: pull, the cache, cards and push."""
