"""The cases of tests/test_bad_input.py: one or more for each row of docs/data.md's table of odd and hostile input."""
