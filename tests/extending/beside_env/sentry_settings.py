import os

import sentry_sdk

from docora.settings import *

sentry_sdk.init(
    dsn=os.environ["SENTRY_DSN"],
    include_local_variables=False,  # they hold tokens and the contents of files
    send_default_pii=False,
    max_request_body_size="never",
)
