"""Who answers a prompt: a bundle, a torch model or an endpoint."""
