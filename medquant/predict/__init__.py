"""From a scan to its mask: the region a network sees, blocks of bounded memory, and the engines that run them."""
