// The official OpenAI Node SDK, unmodified: one scenario per run, its result as JSON on standard output.
//
//   HUB_BASE_URL=http://127.0.0.1:8080/v1 HUB_KEY=blocklet-… node journey.mjs <scenario> ['{"option": …}']

import OpenAI from "openai";

const options = JSON.parse(process.argv[3] ?? "{}");
const client = new OpenAI({
  baseURL: process.env.HUB_BASE_URL,
  apiKey: options.key ?? process.env.HUB_KEY,
  maxRetries: options.retries ?? 0,
});
const model = options.model ?? "openai/gpt-4o";
const messages = [{ role: "user", content: "Say hello." }];
const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

async function chat() {
  const { data, response } = await client.chat.completions.create({ model, messages, ...options.body }).withResponse();
  return { answer: data, requestId: data._request_id, headers: Object.fromEntries(response.headers) };
}

async function stream() {
  const chunks = [];
  const stream = await client.chat.completions.create({ model, messages, stream: true, ...options.body });
  for await (const chunk of stream) chunks.push(chunk);
  return { chunks };
}

async function accumulated() {
  const runner = client.chat.completions.stream({ model, messages, tools: [weather] });
  return { answer: await runner.finalChatCompletion() };
}

async function parsed() {
  const schema = { type: "object", properties: { name: { type: "string" } }, required: ["name"] };
  const answer = await client.chat.completions.parse({
    model,
    messages,
    response_format: { type: "json_schema", json_schema: { name: "city", strict: true, schema } },
  });
  return { answer };
}

async function models() {
  const ids = [];
  for await (const one of client.models.list()) ids.push(one.id);
  return { ids, one: await client.models.retrieve("openai/gpt-4o") };
}

async function left() {
  const stream = await client.chat.completions.create({ model, messages, stream: true });
  for await (const chunk of stream) {
    if (chunk.choices[0].delta.content) break;
  }
  return {};
}

const scenarios = { chat, stream, accumulated, parsed, models, left };

try {
  console.log(JSON.stringify(await scenarios[process.argv[2]]()));
} catch (error) {
  if (!(error instanceof OpenAI.OpenAIError) && !(error instanceof SyntaxError)) throw error;
  const { status, code, param, type, message } = error;
  console.log(JSON.stringify({ error: { name: error.constructor.name, status, code, param, type, message } }));
}
