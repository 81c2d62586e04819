"""The few inner loops that torch does slowly on a CPU, in C++, each with its pure-torch equal beside it."""
