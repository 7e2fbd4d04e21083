// A client in TypeScript whose types were generated from the OpenAPI document. It prints what the test checks, as JSON.
import createClient from "openapi-fetch";
import type { components, paths, webhooks } from "./api";

declare const process: { argv: string[] };
declare const console: { log: (text: string) => void };

const [, , baseUrl, token, url] = process.argv as [string, string, string, string, string];
const client = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${token}` } });

const watched = await client.PUT("/api/repositories", { body: { github_url: url, exclude_patterns: ["*.png"] } });
if (watched.data === undefined) throw new Error(watched.error.code);
const repository_id: string = watched.data.repository_id;
const status: components["schemas"]["Status"] = watched.data.status;

const deliveries = await client.GET("/api/repositories/{repository_id}/deliveries", {
  params: { path: { repository_id }, query: { limit: 1 } },
});
const missing = await client.GET("/api/repositories/{repository_id}", {
  params: { path: { repository_id: "repo_000000000000000000000000" } },
});
const code: components["schemas"]["ErrorCode"] | undefined = missing.error?.code;

// The body of a webhook has a type, too.
type Create = webhooks["create"]["post"]["requestBody"]["content"]["application/json"];
const content = (body: Create): string => body.file.content_encoding ?? "text";

console.log(JSON.stringify({
  repository_id, status, code,
  patterns: watched.data.exclude_patterns,
  paths: deliveries.data?.deliveries.map((row) => row.path),
  content: content({
    repository: { repository_id, github_url: url, owner: "a", name: "b" },
    file: { path: "a", sha: "0", size: 0, content: "" }, commit_sha: "0", timestamp: "",
  }),
}));
