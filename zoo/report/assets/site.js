// On every page: the charts, and the buttons that copy a command.
"use strict";

// A chart's tooltip: text only, so that nothing in a registry can become markup.
function tooltip(handler, event, item, value) {
  let tip = document.getElementById("tip");
  if (!tip) {
    tip = document.createElement("div");
    tip.id = "tip";
    tip.setAttribute("role", "tooltip");
    document.body.append(tip);
  }
  tip.hidden = !value;
  if (!value) return;
  tip.replaceChildren();
  for (const [title, text] of Object.entries(typeof value === "object" ? value : { "": value })) {
    if (text === "" || text === "undefined" || text == null) continue;
    const line = document.createElement("div");
    line.append(Object.assign(document.createElement("span"), { textContent: title }), ` ${text}`);
    tip.append(line);
  }
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, room))}px`;
  tip.style.top = `${event.clientY + 14}px`;
}

// Draws the chart of an element; its specification is the JSON of the same name. No expression is evaluated as code.
function draw(element) {
  const specification = JSON.parse(document.getElementById(element.dataset.chart).textContent);
  const options = { ast: true, actions: false, renderer: "svg", logLevel: 1, defaultStyle: false, tooltip };
  return vegaEmbed(element, specification, options).then(({ view }) => view);
}

const views = {};
for (const element of document.querySelectorAll("[data-chart]")) views[element.dataset.chart] = draw(element);

for (const button of document.querySelectorAll("button.copy")) {
  const code = button.parentElement.querySelector("code");
  const label = button.firstChild;
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    label.textContent = "Copied";
    setTimeout(() => (label.textContent = "Copy"), 1500);
  });
}
