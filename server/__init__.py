"""HTTP only: routes, schemas, service, images, errors and the command line."""
