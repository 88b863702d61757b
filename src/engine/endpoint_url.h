/*
 * endpoint_url.h: where the requests to an endpoint go.
 */
#ifndef FT_ENDPOINT_URL_H
#define FT_ENDPOINT_URL_H

#include "buffer.h"

#include <stdbool.h>

/*
 * The URL of chat completions below an endpoint's, appended to `url`.
 *
 * An endpoint is http or https, a host, perhaps a port, perhaps a path: OpenAI's
 * "base URL", as https://api.openai.com/v1.  Without a path it is /v1.  A user, a
 * password, a query or a fragment in it is FT_INVALID, and so is http towards a
 * host that is not this one unless allow_http.
 */
ft_status ft_endpoint_url(const char *endpoint, bool allow_http, ft_text *url);

#endif
