"""A server and its clients on machines of their own: keys, certificates, folders, what a person sees."""
