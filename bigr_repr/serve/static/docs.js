// A readable view of the API's OpenAPI description.

const api = await (await fetch("openapi.json")).json();

function element(tag, text = "", ...children) {
  const made = document.createElement(tag);
  made.textContent = text;
  made.append(...children);
  return made;
}

const resolved = (schema) => schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema;

function kind(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.anyOf) return [...new Set(schema.anyOf.map(kind))].filter((each) => each !== "null").join(" | ");
  return schema.type === "array" ? `list of ${kind(schema.items) || "anything"}` : schema.type ?? "";
}

function table(title, rows) {
  if (!rows.length) return "";
  const head = element("tr", "", ...[title, "type", "default", ""].map((text) => element("th", text)));
  return element("table", "", head, ...rows.map((cells) => element("tr", "", ...cells.map((text) => element("td", text)))));
}

const row = (name, schema, needed) => [
  name, kind(schema), needed ? "required" : schema.default === undefined ? "" : JSON.stringify(schema.default),
  schema.description ?? "",
];

for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, about] of Object.entries(methods)) {
    const body = resolved(about.requestBody?.content["application/json"].schema);
    const answer = resolved(about.responses["200"]?.content?.["application/json"]?.schema);
    const inside = (schema, needed) => Object.entries(schema?.properties ?? {})
      .map(([name, field]) => row(name, field, needed?.includes(name)));
    const title = element("h2", "", element("b", method.toUpperCase()), ` ${path}`);
    document.getElementById("paths").append(element(
      "article", "", title, element("p", about.description ?? ""),
      table("parameter", (about.parameters ?? []).map((each) => row(each.name, each.schema, each.required))),
      table("body", inside(body, body?.required)), table("answer", inside(answer)),
    ));
  }
}
