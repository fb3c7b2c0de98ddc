"""The generation loop: drafts, verification by the cloud, sampling and pace."""
