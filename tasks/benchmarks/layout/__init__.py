"""What benchmarks share: layouts of question, label and answer files, and the sums that scores are made of."""
