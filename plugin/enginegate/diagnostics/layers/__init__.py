"""Which layer damages the embeddings, and the fewest to keep in fp32."""
