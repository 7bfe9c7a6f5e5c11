"""The paper's figures and tables of a run: numbers, pictures, what the paper claims and what the numbers say of it."""
