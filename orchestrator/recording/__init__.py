"""Record worker events in the registry: metrics, artifacts and versions of experts."""
