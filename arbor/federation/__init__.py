"""Made by `make proto` from the contracts in `proto/`; never edited."""
