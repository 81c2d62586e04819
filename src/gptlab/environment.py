"""What must stand in the environment of a process before it imports torch."""

BEFORE_TORCH = {
    # Threads that wait for each other spin for some microseconds and then sleep. With the default, milliseconds,
    # every wait stalls as soon as another process takes one of the cores.
    "GOMP_SPINCOUNT": "3000",
    # Large allocations in huge pages: a step of mini-gpt takes three quarters of the time.
    "THP_MEM_ALLOC_ENABLE": "1",
    # oneDNN keeps the code it makes for each shape, a megabyte or two; rows of uneven length have many shapes, and its
    # own limit is 1,024. 128 cost 6 % of the time.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "512",
}
"""Figures in docs/log.md. What is set already stays."""
