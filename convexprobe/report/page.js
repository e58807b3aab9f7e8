"use strict";
// Tables: a button in each header sorts by its column, numbers by value.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[column].textContent;
      const number = (text) => (/^[-+\d.]/.test(text) ? parseFloat(text) : NaN);
      const rows = [...body.rows].sort((a, b) => {
        const [s, t] = [value(a), value(b)], [x, y] = [number(s), number(t)];
        const order = isNaN(x) || isNaN(y)
          ? isNaN(y) - isNaN(x) || s.localeCompare(t, undefined, { numeric: true }) : x - y;
        return up ? order : -order;
      });
      body.append(...rows);
    });
  });
}
// The movie: the slider redraws the curves of the step, and moves the line on the heat map.
const data = document.getElementById("movie-data");
if (data) {
  const movie = JSON.parse(data.textContent);
  const slider = document.getElementById("movie-step"), shown = document.getElementById("movie-shown");
  const play = document.getElementById("movie-play");
  const draw = () => {
    const at = Number(slider.value), step = movie.steps[at];
    shown.textContent = slider.ariaValueText = "step " + step;
    for (const chart of document.querySelectorAll("#movie-error, #movie-information")) {
      const svg = chart.querySelector("svg"), box = svg.dataset;
      for (const curve of svg.querySelectorAll("g[data-key]")) {
        const values = movie.series[curve.dataset.key][at], wide = box.span / values.length;
        let line = "", dots = "", pen = "M";
        values.forEach((v, i) => {
          if (v === null) { pen = "M"; return; }
          const x = (Number(box.left) + (i + .5) * wide).toFixed(1);
          const y = (Number(box.top) + box.rise * (1 - (v - box.low) / (box.high - box.low))).toFixed(1);
          line += pen + x + " " + y;
          dots += "M" + x + " " + y + "h0";
          pen = "L";
        });
        curve.querySelector(".line").setAttribute("d", line);
        curve.querySelector(".dots")?.setAttribute("d", dots);
      }
    }
    const mark = document.querySelector(".mark");
    mark.setAttribute("transform", `translate(${mark.dataset.edges.split(" ")[at] - movie.left} 0)`);
  };
  slider.addEventListener("input", draw);
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = 0;
    play.textContent = "Stop";
    timer = setInterval(() => {
      if (slider.value === slider.max) return stop();
      slider.value = Number(slider.value) + 1;
      draw();
    }, Math.max(80, 8000 / movie.steps.length));
    draw();
  });
  document.querySelector(".movie").hidden = false;
  draw();
}
