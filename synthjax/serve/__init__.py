"""A session behind an HTTP endpoint that speaks the OpenAI protocol: `server.serve`."""
