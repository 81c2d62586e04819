"""One verb a file: it reads its arguments, calls a public function and prints."""
