// Receives Docora's notifications and verifies X-Docora-Signature over the bytes that came, before they are parsed.
// Node.js 18 or newer, no packages.
//
//   DOCORA_KEY='the signing key of your app' PORT=9000 node verify_raw.mjs
//
// In Express the bytes are there with `express.raw({type: 'application/json', limit: '8mb'})` as `request.body`.

import crypto from 'node:crypto';
import http from 'node:http';
import { pathToFileURL } from 'node:url';

const TOLERANCE_SECONDS = 300; // a request that is older may be a recorded one that somebody plays again
const MAX_BODY_BYTES = 8 * 1024 * 1024; // enough: larger files come in chunks

/** Was this request signed with the key, and just now? Header names in lower case; `bytes` is the body as it came. */
export function verify(headers, bytes, key) {
  const timestamp = headers['x-docora-timestamp'] ?? '';
  const age = Math.abs(Date.now() / 1000 - Number(timestamp));
  if (!(age <= TOLERANCE_SECONDS)) return false; // written so that "not a number" is refused as well

  const digest = crypto.createHmac('sha256', key).update(`${timestamp}.`).update(bytes).digest('hex');
  const expected = Buffer.from(`sha256=${digest}`);
  const given = Buffer.from(headers['x-docora-signature'] ?? '');
  // timingSafeEqual takes the same time whatever differs, and throws when the lengths do.
  return given.length === expected.length && crypto.timingSafeEqual(given, expected);
}

/** What your app does with a notification: `event` is create, update, delete, sync_failed, sync_completed or ping. */
function handle(event, notification) {
  console.log(event, JSON.stringify(notification.file?.path ?? ''));
}

function start(key, port) {
  const server = http.createServer(async (request, response) => {
    const answer = (status) => response.writeHead(status).end();
    const pieces = [];
    let size = 0;
    for await (const piece of request) {
      size += piece.length;
      if (size > MAX_BODY_BYTES) return answer(413);
      pieces.push(piece);
    }
    const bytes = Buffer.concat(pieces);
    if (!verify(request.headers, bytes, key)) return answer(401); // a 2xx would count as delivered
    handle(request.url.split('/').pop(), JSON.parse(bytes.toString('utf8'))); // it is Docora's, and so it is JSON
    return answer(200);
  });
  server.listen(port, '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}`));
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  start(process.env.DOCORA_KEY, Number(process.env.PORT ?? 9000));
}
