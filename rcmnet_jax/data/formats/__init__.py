"""One module for each form that DATA may have; `rcmnet_jax.data.sources` chooses among them."""
