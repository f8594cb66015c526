"use strict";

// The validator is a service of somebody else's, which nobody here asked for.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  docExpansion: "list",
  queryConfigEnabled: false,
  validatorUrl: null,
});
