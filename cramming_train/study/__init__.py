"""A study: recipes trained under equal budgets on the same text, and what came of them side by side."""
