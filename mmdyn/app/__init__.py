"""A web page on which a dense and a sparse model are compared, picture by picture."""
