"""The methods: what each trains and how each predicts. They do not import one another."""
