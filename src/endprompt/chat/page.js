"use strict";
const $ = id => document.getElementById(id);
const number = value => value.toLocaleString("en");
let running = null;

function show(state) {
  $("model").textContent = state.model;
  $("about").textContent = state.file ? `about ${state.file}` : "about nothing in particular";
  document.title = `${state.model} · endprompt chat`;
  use(state);
}

function use(state) {
  const share = state.used / state.window;
  $("meter").value = share;
  $("use").textContent =
    `${number(state.used)} of ${number(state.window)} tokens, ${Math.round(100 * share)} %`;
}

function add(kind, who, text) {
  const name = document.createElement("span");
  name.className = "who";
  name.textContent = who;
  const said = document.createElement("div");
  said.className = kind;
  said.textContent = text;  // never markup: a text may hold anything
  $("turns").append(name, said);
  said.scrollIntoView({block: "nearest"});
  return said;
}

function history(state) {
  $("turns").replaceChildren();
  for (const [question, answer] of state.turns) {
    add("question", "You", question);
    add("answer", "Model", answer);
  }
}

async function post(path, body, signal) {
  const answer = await fetch(path, {
    method: "POST", signal, body: JSON.stringify(body),
    headers: {"Content-Type": "application/json"},
  });
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer;
}

async function* lines(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const {value, done} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

async function ask(question) {
  add("question", "You", question);
  const said = add("answer", "Model", "");
  const since = performance.now();
  let doing = "reading";
  const tick = () => {
    $("status").textContent = `${doing}, ${Math.round((performance.now() - since) / 1000)} s`;
  };
  const clock = setInterval(tick, 1000);
  running = new AbortController();
  $("stop").hidden = false;
  $("send").disabled = true;
  let ended = false;
  try {
    for await (const line of lines(await post("/ask", {question}, running.signal))) {
      if ("reading" in line) {
        doing = `reading ${number(line.reading)} tokens`;
        use(line);
      }
      if ("text" in line) {
        doing = "answering";
        said.textContent += line.text;
        said.scrollIntoView({block: "nearest"});
      }
      if ("error" in line) throw new Error(line.error);
      if ("done" in line) {
        said.textContent = line.done.answer || "(no answer)";
        use(line.done);
        ended = true;
      }
      tick();
    }
    if (!ended) throw new Error("the server ended without an answer");
    $("status").textContent = `answered in ${((performance.now() - since) / 1000).toFixed(1)} s`;
  } catch (problem) {
    const stopped = problem.name === "AbortError";
    $("status").textContent = stopped ? "stopped" : "";
    if (!stopped) {
      said.className = "problem";
      said.textContent = problem.message;
    }
  } finally {
    clearInterval(clock);
    running = null;
    $("stop").hidden = true;
    $("send").disabled = false;
    $("question").focus();
  }
}

$("ask").addEventListener("submit", async event => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || running) return;
  $("question").value = "";
  await ready;  // or else what was said before would be shown in place of the question
  ask(question);
});
$("question").addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
$("stop").addEventListener("click", () => running?.abort());
$("start").addEventListener("submit", async event => {
  event.preventDefault();
  const file = $("file").files[0];
  try {
    const text = file
      ? new TextDecoder("utf-8", {fatal: true}).decode(await file.arrayBuffer())
      : $("text").value;
    const state = await (await post("/start", {text, name: file ? file.name : text && "a text"})).json();
    show(state);
    history(state);
    $("start").reset();
    $("another").open = false;
    $("status").textContent = "";
    $("question").focus();
  } catch (problem) {
    $("status").textContent =
      problem instanceof TypeError ? `${file.name} is no UTF-8 text` : problem.message;
  }
});
const ready = fetch("/state").then(answer => answer.json()).then(state => {
  show(state);
  history(state);
});
